// An empty Python module: importing it runs the registrations of the shared object it lives in.
#pragma once

#include <Python.h>

#define FASTTRACE_MODULE(name)                                                        \
  extern "C" __attribute__((visibility("default"))) PyObject* PyInit_##name() {       \
    static PyModuleDef definition = {PyModuleDef_HEAD_INIT, #name, nullptr, -1, nullptr, \
                                     nullptr, nullptr, nullptr, nullptr};             \
    return PyModule_Create(&definition);                                              \
  }

// Included before every source, so that a module built with a new glibc loads where 2.28 is installed, as torch does.
#pragma once

#include <features.h>

#ifdef __GLIBC__
// exp, log and pow of 2.29 only leave out the handling of errno: the numbers are the same.
#if defined(__x86_64__)
#define FASTTRACE_GLIBC "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define FASTTRACE_GLIBC "GLIBC_2.17"
#endif
#ifdef FASTTRACE_GLIBC
__asm__(".symver exp, exp@" FASTTRACE_GLIBC);
__asm__(".symver log, log@" FASTTRACE_GLIBC);
__asm__(".symver pow, pow@" FASTTRACE_GLIBC);
#endif

// libstdc++ counts references without atomic operations while this variable of glibc 2.32 says that there is one
// thread. With torch there are always several.
extern "C" __attribute__((weak, visibility("hidden"))) char __libc_single_threaded = 0;
#endif

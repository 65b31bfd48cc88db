"""Causal tracing: where a model stores a fact."""

from fasttrace.tracing.known import KnownResult, check_known
from fasttrace.tracing.result import TraceResult
from fasttrace.tracing.sweep import prepare_trace, trace

__all__ = ["KnownResult", "TraceResult", "check_known", "prepare_trace", "trace"]

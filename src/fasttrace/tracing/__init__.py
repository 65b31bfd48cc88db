"""Causal tracing: where a model stores a fact."""

from fasttrace.tracing.known import KnownResult, check_known
from fasttrace.tracing.prepare import prepare_trace, trace
from fasttrace.tracing.result import TraceResult

__all__ = ["KnownResult", "TraceResult", "check_known", "prepare_trace", "trace"]

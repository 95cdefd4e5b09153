"""Our own studies, written as users of rlpre: comparisons, cloned policies and their errors, transfer, benchmarks."""

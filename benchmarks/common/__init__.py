"""Parts that several benchmarks use; none of these modules is run by itself."""

"""Measurements that anyone can repeat: `python -m benchmarks.run_all`; results lie in `results/`."""

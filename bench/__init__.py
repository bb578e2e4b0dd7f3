"""Benchmarks, side by side with Kamailio's own async module. Not tests: they measure, and say what they measured."""

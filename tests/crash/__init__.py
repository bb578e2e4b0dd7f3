"""Sidecars killed at random instants under load, many times; at length with ``python -m tests.crash`` (make crash)."""

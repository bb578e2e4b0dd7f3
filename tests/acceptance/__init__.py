"""Acceptance: real Kamailio, real SIPp, real shim, real sidecar."""

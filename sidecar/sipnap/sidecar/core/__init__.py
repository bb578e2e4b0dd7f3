"""All rules of the sidecar, without I/O: no asyncio, no gRPC, no wall clock. The clock is handed in."""

"""The gRPC edge: each module is one service, and only translates."""

"""The sidecar: timer heap, worker groups and journal behind the RPCs of ``sipnap.v1``."""

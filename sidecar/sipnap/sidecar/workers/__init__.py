"""Who runs operations: coroutines of this process, processes of its own, or whoever connects."""

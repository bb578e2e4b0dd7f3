"""What the tests share: processes, ports and waiting with a bound."""

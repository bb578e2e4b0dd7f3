"""Front ends: what stands between the owner of SIP transactions and the sidecar, one package for each kind."""

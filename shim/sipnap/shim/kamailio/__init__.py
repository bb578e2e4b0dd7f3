"""The Kamailio shim: datagrams from the proxy on one side, one gRPC session with the sidecar on the other.

`datagram` reads what the proxy sends, `nap_request` writes what it is sent, `bridge` connects both with the session.
`sipnap.cfg` (native scripts) and `sipnap_kemi.py` (KEMI scripts) are the proxy's side.
"""

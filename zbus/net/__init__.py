"""Sockets, the addresses they listen on and dial, and the sessions that are held over them."""

"""The protocol, sans-IO: what is said, and what follows from it.

No module here knows a socket, a thread, a clock or torch: they take events and the time, and give
what is to be sent and done.
"""

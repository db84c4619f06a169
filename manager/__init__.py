"""The manager: queue, placement, server, and the program's side of them."""

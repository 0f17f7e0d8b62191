"""A whole study on this machine, from a hub on loopback, before anything large is downloaded."""

"""What is run and kept: protocol, cells, records, workflow."""

"""What is measured on the records, with intervals and tests."""

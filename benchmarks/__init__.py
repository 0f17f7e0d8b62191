"""Speed of this project's scoring against other ways to run the same experiment."""

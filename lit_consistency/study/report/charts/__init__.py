"""One file a kind of picture: each turns plain data into marks."""

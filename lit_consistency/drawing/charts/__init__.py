"""Kinds of pictures that more than one room draws; each turns plain data into marks."""

"""What finished studies found, as small tables, and the test that computes the README's numbers from them anew."""

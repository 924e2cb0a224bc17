"""Training on one task after the other, and the matrix of what each stage keeps."""

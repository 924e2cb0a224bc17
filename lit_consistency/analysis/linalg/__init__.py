"""Mathematics of matrices that several analyses share; knows no model."""

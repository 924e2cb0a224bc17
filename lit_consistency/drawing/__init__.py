"""Pictures as lists of marks, without a plotting library: laid out once, written as SVG or PNG."""

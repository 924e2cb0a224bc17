"""Where text and rows come from: files, data sets of the hub, what is held out of them."""

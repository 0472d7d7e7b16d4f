"""Generated packages, one to a model: `vgen build MODEL` writes them, `vgen check` compares them."""

"""Inputs for any model, from its forward's signature and its config.

`request` is what a caller asks for, `facts` reads a model's config, `text`, `images`, `audio` and `others` make the parts,
and `make` puts them together and tries them on the model.
"""

from .make import abilities, make_inputs
from .request import CannotMakeInputsError, Request

__all__ = ["CannotMakeInputsError", "Request", "abilities", "make_inputs"]

"""How a model is called for a case, and what is kept of it: the same for upstream's model and the generated one."""

from __future__ import annotations

import copy
import inspect
import random
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from .cases import NEW_TOKENS, Case, Way
from .measure import frozen, leaves

SEED = 20


def call(model: Any, case: Case, inputs: dict[str, Any]) -> dict[str, Any]:
    """Run one case. Inputs are copied, random numbers start from the same seed, and what is returned is a copy.

    Raises:
        Exception: Whatever the model raises.
    """
    inputs = _copied(inputs)
    _seed()
    with ExitStack() as stack:
        if case.autocast:
            device = next(model.parameters()).device.type
            stack.enter_context(torch.autocast(device, dtype=torch.bfloat16))
        match case.way:
            case Way.FORWARD:
                stack.enter_context(torch.inference_mode())
                return frozen(model(**inputs, **_accepted(model, case)))
            case Way.TRAINING:
                return _trained(model, inputs, _accepted(model, case))
            case Way.GENERATE:
                return generated(model, inputs, dict(case.arguments))


def _accepted(model: Any, case: Case) -> dict[str, Any]:
    parameters = inspect.signature(type(model).forward).parameters
    is_open = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return {name: value for name, value in case.arguments if is_open or name in parameters}


def _trained(model: nn.Module, inputs: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    model.train()
    model.zero_grad(set_to_none=True)
    try:
        output = model(**inputs, **arguments)
        loss = getattr(output, "loss", None)
        if not (isinstance(loss, torch.Tensor) and loss.requires_grad):
            parts = [each for _, each in leaves(output) if isinstance(each, torch.Tensor) and each.requires_grad]
            if not parts:
                raise ValueError("nothing in its output has a gradient")
            loss = torch.stack([part.float().pow(2).mean() for part in parts]).sum()
        loss.sum().backward()  # type: ignore[no-untyped-call]
        found = frozen(output)
        for name, parameter in model.named_parameters():
            found[f"gradient of {name}"] = None if parameter.grad is None else parameter.grad.detach().clone()
        return found
    finally:
        model.eval()
        model.zero_grad(set_to_none=True)


def generated(model: Any, inputs: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Greedy tokens of `generate` and the logits behind them, by name; upstream's own compilation is off."""
    if model.config.is_encoder_decoder and model.generation_config.decoder_start_token_id is None:
        # Checkpoints say it, configs of their own don't.
        arguments["decoder_start_token_id"] = 0
    output = model.generate(
        **inputs,
        **arguments,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=1,
        return_dict_in_generate=True,
        output_logits=True,
        disable_compile=True,
    )
    if isinstance(output, torch.Tensor):
        return {"sequences": output.clone()}
    return frozen({"sequences": output.sequences, "logits": getattr(output, "logits", None)})


def _copied(value: Any) -> Any:
    return copy.deepcopy(value)


def _seed() -> None:
    torch.manual_seed(SEED)
    random.seed(SEED)
    import numpy

    numpy.random.seed(SEED)

"""Puts inputs together, and tries what the config leaves open on the model."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .audio import NAMES, feature_inputs, wave_inputs
from .facts import Facts, input_embedding, read
from .images import image_inputs, video_inputs
from .others import NEEDED
from .request import CannotMakeInputsError, Request
from .text import Insert, plain_ids, tokens
from .widths import widened

Inputs = dict[str, Any]
_TRIES = 96
_DIFFERENT = 24
"""Errors of so many kinds are enough."""
_IMAGES = ("pixel_values", "image", "images", "pixel_values_images", "flattened_patches", "image_pixel_values")
_TEXT = ("input_ids",)


def abilities(model: PreTrainedModel) -> frozenset[str]:
    """What inputs `model` can take, by its forward and config.

    Some of "text", "images", "image sizes" (of one call, each its own), "video", "audio", "embeds", "padding" (a mask of
    tokens), "cache", "decoder" (of an encoder-decoder), "labels".
    """
    facts = read(model)
    found: set[str] = set()
    for name, names in {
        "text": ("input_ids",),
        "images": _IMAGES,
        "image sizes": ("image_grid_thw", "image_grid_hws", "grid_thw", "spatial_shapes", "pixel_mask"),
        "video": ("pixel_values_videos",),
        "audio": ("input_features", "input_values"),
        "padding": ("attention_mask",),
        "cache": ("past_key_values", "cache_params", "cache"),
        "decoder": ("decoder_input_ids",),
        "labels": ("labels",),
    }.items():
        if facts.takes(*names):
            found.add(name)
    if facts.takes("inputs_embeds") and input_embedding(model) is not None:
        found.add("embeds")
    if "text" not in found:
        found.discard("embeds")
        found -= {"padding"} if "audio" not in found else set()
    return frozenset(found)


def make_inputs(model: PreTrainedModel, request: Request = Request()) -> Inputs:  # noqa: B008 (frozen)
    """Inputs for one call of `model` as `request` asks, on its device and in its dtype. Deterministic.

    Several layouts may fit a signature; the first that the model runs on is taken. So give it an upstream model, and give the
    result to the generated one too.

    Returns:
        The forward's keyword arguments: tensors, sometimes lists and numbers.

    Raises:
        CannotMakeInputsError: the model takes no such inputs, or none that were made ran; the message names the last error.
    """
    facts = read(model)
    errors: dict[str, Exception] = {}
    tried = 0
    given: set[str] = set()
    other_widths: list[Inputs] = []
    for media in _sources(facts, request, other_widths):
        kinds: set[str] = set()
        for part, made in islice(_candidates(facts, request, media), _TRIES):
            tried += 1
            failed: Exception | None
            if isinstance(made, Exception):
                failed = made
            else:
                given |= set(made)
                inputs = _moved(model, made)
                failed = _fails(model, inputs)
                if failed is None:
                    return _without_idle_mask(model, inputs)
            other_widths += widened(part if part or isinstance(made, Exception) else made, failed)
            kinds.add(_line(failed))
            errors.setdefault(_line(failed), failed)
            if isinstance(failed, ImportError) or (failed is not made and _missing(failed) - given):
                break  # no other layout will help
            if len(kinds) > _DIFFERENT:
                break
    if not errors:
        raise CannotMakeInputsError(
            f"{type(model).__name__} takes none of what inputs can be made for: {sorted(facts.parameters)}"
        )
    missing = [name for name, each in facts.parameters.items() if each.default is each.empty and name not in NEEDED]
    raise CannotMakeInputsError(
        f"{type(model).__name__} ran with none of {tried} inputs"
        + (f"; it needs {', '.join(missing)}" if missing else "")
        + "".join(f"; {line}" for line in list(errors)[:4])
    ) from next(iter(errors.values()))


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _fails(model: PreTrainedModel, inputs: Inputs) -> Exception | None:
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(**inputs)
    except Exception as error:  # whatever a model says of inputs that don't fit
        return error
    finally:
        model.train(training)
    return None


def _without_idle_mask(model: PreTrainedModel, inputs: Inputs) -> Inputs:
    """Without a mask that runs only as long as it masks nothing: of another length than what the model attends to."""
    mask = inputs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2 or "input_ids" in inputs or not mask.all():
        return inputs
    padded = mask.clone()
    padded[0, -1] = 0
    without = {name: value for name, value in inputs.items() if name != "attention_mask"}
    if _fails(model, inputs | {"attention_mask": padded}) is not None and _fails(model, without) is None:
        return without
    return inputs


def _moved(model: PreTrainedModel, inputs: Inputs) -> Inputs:
    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(model.device, model.dtype if value.is_floating_point() else None)
        return value

    return {name: moved(value) for name, value in inputs.items()}


def _missing(error: Exception) -> set[str]:
    """The arguments without which a forward wasn't even called."""
    named = re.search("missing .* required positional arguments?: (.*)", str(error))
    return set(re.findall(r"'(\w+)'", named[1])) if named else set()


def _candidates(
    facts: Facts, request: Request, parts: Iterable[Inputs]
) -> Iterator[tuple[Inputs, Inputs | Exception]]:
    """Each part with whole inputs, the likeliest first, or with an error where the encoder refuses what would be its part."""
    for media in parts:
        try:
            made = _with_text(facts, request, media)
        except CannotMakeInputsError:
            raise
        except Exception as error:  # whatever a model says of inputs that don't fit
            yield media, error
            continue
        for whole in _completed(facts, request, made):
            yield media, whole


def _media(facts: Facts, request: Request) -> Iterator[Inputs]:
    """Images, videos and audio for all samples; an empty dict where the model takes none."""
    seed = request.seed
    for images in _images(facts, request, seed):
        videos = video_inputs(facts, request, seed) if _wants_video(facts, request) else iter([{}])
        for video in videos:
            for audio in _audio(facts, request, seed):
                yield images | video | audio


def _sources(facts: Facts, request: Request, other_widths: list[Inputs]) -> Iterator[Iterator[Inputs]]:
    """Media in the order in which they're tried, and each time what was learned from the errors of those."""
    for each in _fewer(facts, request):
        other_widths.clear()
        yield _media(facts, each)
        yield _drained(other_widths)


def _drained(parts: list[Inputs]) -> Iterator[Inputs]:
    """`parts` from the front, with what comes in for each right after it; none twice whose tensors have the same sizes."""
    seen: set[tuple[Any, ...]] = set()
    while parts:
        part = parts.pop(0)
        sizes = tuple((name, getattr(value, "shape", None)) for name, value in sorted(part.items()))
        if sizes not in seen:
            seen.add(sizes)
            before = len(parts)
            yield part
            parts[:] = parts[before:] + parts[:before]


def _fewer(facts: Facts, request: Request) -> Iterator[Request]:
    """`request`, then without audio, without images, and without both, where that isn't insisted on."""

    def free(asked: int | None, names: tuple[str, ...]) -> bool:
        return asked is None and facts.takes(*names) and not any(_required(facts, name) for name in names)

    yield request
    if not facts.takes("input_ids"):
        return
    images, audio = free(request.images, _IMAGES), free(request.audios, NAMES)
    if audio:
        yield replace(request, audios=0)
    if images:
        yield replace(request, images=0)
    if images and audio:
        yield replace(request, images=0, audios=0)


def _wants_video(facts: Facts, request: Request) -> bool:
    only = not facts.takes(*_TEXT, *_IMAGES)
    return facts.takes("pixel_values_videos") and (
        request.videos > 0 or only or _required(facts, "pixel_values_videos")
    )


def _required(facts: Facts, name: str) -> bool:
    return name in facts.parameters and facts.parameters[name].default is inspect.Parameter.empty


def _images(facts: Facts, request: Request, seed: int) -> Iterator[Inputs]:
    name = next((each for each in _IMAGES if facts.takes(each)), None)
    if name is None and facts.takes("hidden_states") and facts.takes("grid_thw", "grid_hws", "image_grid_thw"):
        name = "hidden_states"
    if name is None or request.images == 0:
        return iter([{}])
    return (
        {
            name if key == "pixel_values" else key: value
            for key, value in made.items()
            if key == "pixel_values" or facts.takes(key)
        }
        for made in image_inputs(facts, request, seed)
    )


def _audio(facts: Facts, request: Request, seed: int) -> Iterator[Inputs]:
    if request.audios == 0 or not facts.takes(*NAMES):
        return iter([{}])
    if not facts.takes("input_values"):
        return feature_inputs(facts, request, seed)
    if all(_required(facts, name) for name in ("input_values", "input_features")):
        # Waves, and a spectrogram of the same.
        return (
            wave | {name: value for name, value in features.items() if name not in wave}
            for wave in wave_inputs(facts, request, seed)
            for features in islice(feature_inputs(facts, request, seed), _TRIES // 8)
        )
    return _chained(wave_inputs(facts, request, seed), feature_inputs(facts, request, seed))


def _chained(*parts: Iterator[Inputs]) -> Iterator[Inputs]:
    for part in parts:
        yield from part


_MODALITIES = (
    ("image", 1, "get_image_features", ("pixel_values", "image_grid_thw", "image_sizes", "image_grid_hws"),
     ("vision_start_token_id", "image_start_token_id", "boi_token_id", "boi_token_index"),
     ("vision_end_token_id", "image_end_token_id", "eoi_token_id", "eoi_token_index")),
    ("video", 2, "get_video_features", ("pixel_values_videos", "video_grid_thw"),
     ("vision_start_token_id", "video_start_token_id"), ("vision_end_token_id", "video_end_token_id")),
    ("audio", 3, "get_audio_features", ("input_features", "input_values"),
     ("audio_start_token_id", "boa_token_id", "audio_bos_token_id"), ("audio_end_token_id", "eoa_token_id", "audio_eos_token_id")),
)  # fmt: skip


def _with_text(facts: Facts, request: Request, media: Inputs) -> Inputs:
    """`media` with the text that it is about.

    Raises:
        Exception: of any kind, from the model's own encoder, which doesn't take `media`.
    """
    generator = torch.Generator().manual_seed(request.seed)
    if not facts.takes(*_TEXT):
        return media
    inserts: list[list[Insert]] = [[] for _ in range(request.batch)]
    for modality, kind, method, names, starts, ends in _MODALITIES:
        given = dict(media)
        token = facts.find(f"{modality}_token_id", f"{modality}_token_index")
        if modality == "video" and facts.find("image_token_id", "image_token_index") is None:
            names = (*names, "pixel_values")  # its images are frames
        if not any(name in media for name in names) or not isinstance(token, int):
            continue
        counts = _counts(facts, method, given, request)
        start, end = (facts.find(*each) for each in (starts, ends))
        per_sample = max(1, len(counts) // request.batch)
        for place, count in enumerate(counts):
            sample = min(request.batch - 1, place // per_sample)
            inserts[sample].append(
                Insert(token=token, count=count, type=kind, start=_usable(start, facts), end=_usable(end, facts))
            )
    made = tokens(facts, request, inserts, generator)
    if not facts.takes("attention_mask"):
        if request.padding is not None:
            raise CannotMakeInputsError(f"{type(facts.model).__name__} takes no attention mask")
        made.pop("attention_mask", None)
    return made | media


def _usable(token: Any, facts: Facts) -> int | None:
    return token if isinstance(token, int) and 0 <= token < facts.vocabulary() else None


def _counts(facts: Facts, method: str, media: Inputs, request: Request) -> list[int]:
    """How many tokens each image, video or clip becomes: what the model's own method makes of it."""
    holders = [each for each in facts.model.modules() if hasattr(each, method)]
    function = getattr(holders[0], method) if holders else None
    if function is None:
        return [
            int(facts.find("image_seq_length", "num_image_tokens", "mm_tokens_per_image", "image_seq_len", default=4))
        ] * request.batch
    parameters = _arguments([getattr(each, method) for each in holders])
    given = {name: value for name, value in _moved(facts.model, media).items() if name in parameters}
    generator = torch.Generator().manual_seed(request.seed + 4)
    for name, each in parameters.items():
        if name not in given and each.default is each.empty and name in NEEDED:
            given[name] = NEEDED[name](facts, request, generator)
    with torch.no_grad():
        try:
            found = function(**given)
        except ValueError:
            # The model itself may call it with all samples' images in a row.
            if all(value is _in_a_row(value) for value in given.values()):
                raise
            found = function(**{name: _in_a_row(value) for name, value in given.items()})
    counts = _lengths(found, request)
    if counts is None:
        raise ValueError(f"{method} gave features of no known layout")
    return counts


def _in_a_row(value: Any) -> Any:
    """Images of several samples [samples, images, channels, height, width] without the samples."""
    return value.flatten(0, 1) if isinstance(value, Tensor) and value.ndim == 5 else value


def _arguments(functions: list[Any]) -> dict[str, inspect.Parameter]:
    """The parameters of the first function, and of the next ones as long as each passes its keyword arguments on."""
    found: dict[str, inspect.Parameter] = {}
    for function in functions:
        parameters = inspect.signature(function).parameters
        found |= {name: each for name, each in parameters.items() if each.kind is each.POSITIONAL_OR_KEYWORD}
        if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            break
    return found


def _lengths(found: Any, request: Request) -> list[int] | None:
    """Rows of the features of each image: a tensor [images, tokens, width], [tokens, width], or a list of those."""
    if hasattr(found, "pooler_output") and found.pooler_output is not None:
        found = found.pooler_output
    elif hasattr(found, "last_hidden_state"):
        found = found.last_hidden_state
    if isinstance(found, tuple) and found and isinstance(found[0], list | tuple):
        found = found[0]
    if isinstance(found, list | tuple):
        return [each.reshape(-1, each.shape[-1]).shape[0] for each in found if isinstance(each, Tensor)] or None
    if isinstance(found, Tensor):
        if found.ndim >= 3:
            rows = found.reshape(found.shape[0], -1, found.shape[-1]).shape[:2]
            if rows[0] % request.batch == 0 or rows[0] > request.batch:
                return [int(rows[1])] * int(rows[0])
            return _shared(int(rows[0] * rows[1]), request)
        return _shared(int(found.shape[0]), request)
    return None


def _shared(total: int, request: Request) -> list[int] | None:
    return [total // request.batch] * request.batch if total % request.batch == 0 else None


def _completed(facts: Facts, request: Request, made: Inputs) -> Iterator[Inputs]:
    """`made` with what else the forward needs; first as little as possible."""
    generator = torch.Generator().manual_seed(request.seed + 4)
    decodes = any(config.is_encoder_decoder for config in facts.configs) or not facts.takes("input_ids")
    if decodes and facts.takes("decoder_input_ids") and "decoder_input_ids" not in made:
        made = made | {"decoder_input_ids": plain_ids(facts, (request.batch, max(2, request.length - 4)), generator)}
    for name, each in facts.parameters.items():
        if each.default is each.empty and name not in made and name in NEEDED:
            made = made | {name: NEEDED[name](facts, request, generator)}
    if request.embeds:
        made = _embedded(facts, made)
    if request.labels:
        if not facts.takes("labels") or "input_ids" not in made:
            raise CannotMakeInputsError(f"{type(facts.model).__name__} takes no labels of tokens")
        made = made | {"labels": made.get("decoder_input_ids", made["input_ids"])}
    yield made
    extra = {
        name: NEEDED[name](facts, request, generator)
        for name in facts.parameters
        if name in NEEDED
        and name not in made
        and name not in ("input_ids", "inputs_embeds", "hidden_states", "mask", "encoder_hidden_states")
    }
    if extra:
        yield made | extra
    for count in _codebooks(facts):
        # Codes of several codebooks at each step in place of tokens.
        coded = {
            name: value[..., None].expand(*value.shape, count)
            for name, value in made.items()
            if name in ("input_ids", "decoder_input_ids") and isinstance(value, Tensor) and value.ndim == 2
        }
        yield made | coded
        if "decoder_input_ids" in coded:
            yield made | {"decoder_input_ids": coded["decoder_input_ids"]}
            flat = made["decoder_input_ids"].repeat_interleave(count, 0)
            yield made | {"decoder_input_ids": flat}
        else:
            yield made | {"input_ids": made["input_ids"].repeat_interleave(count, 0)} if "input_ids" in made else made
    if facts.takes("encoder_hidden_states") and "encoder_hidden_states" not in made:
        yield made | {"encoder_hidden_states": NEEDED["encoder_hidden_states"](facts, request, generator)}


def _codebooks(facts: Facts) -> list[int]:
    counts = [
        value
        for name in ("num_codebooks", "num_channels", "n_codes_total")
        if isinstance(value := facts.find(name), int) and value > 1
    ]
    return [
        each
        for count in dict.fromkeys(counts if facts.takes("input_ids", "decoder_input_ids") else [])
        for each in (count, count + 1)
    ]


def _embedded(facts: Facts, made: Inputs) -> Inputs:
    embedding = input_embedding(facts.model)
    if embedding is None or not facts.takes("inputs_embeds") or "input_ids" not in made:
        raise CannotMakeInputsError(f"{type(facts.model).__name__} takes no embeddings in place of tokens")
    with torch.no_grad():
        embeds = embedding(made["input_ids"].to(facts.model.device))
    return {name: value for name, value in made.items() if name != "input_ids"} | {"inputs_embeds": embeds}

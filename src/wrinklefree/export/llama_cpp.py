"""llama.cpp itself, from the shared library of the ``xllamacpp`` wheel, by its C interface.

Parameters are structures that llama.cpp fills and takes by value. A few of their numbers are set
here, and only where llama.cpp's own defaults stand: a version in which they don't is refused.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int8, c_int32, c_void_p
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from wrinklefree.errors import UserError
from wrinklefree.tracking.cpus import available_cpus

_F32, _GPU_LAYERS = 0, 4
_SIZES, _THREADS, _FLASH_ATTENTION, _CACHE_TYPES = (0, 1, 2), (7, 8), 13, (26, 27)
"""Words of 32 bits of the parameters of a context: ``n_ctx``, ``n_batch`` and ``n_ubatch``;
``n_threads`` and ``n_threads_batch``; ``flash_attn_type``; ``type_k`` and ``type_v``."""
_DEFAULTS = {0: 512, 1: 2048, 2: 512, 3: 1, 7: 4, 8: 4, 13: -1, 26: 1, 27: 1}
_WORDS = 256
_LONGEST_PIECE = 1024

_Size = ctypes.c_size_t
_Log = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)


class _Parameters(Structure):
    """Room for any structure of parameters: what llama.cpp does not know of it does not see."""

    _fields_ = (("words", c_int32 * _WORDS),)


class _Batch(Structure):
    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


class _GgufParameters(Structure):
    _fields_ = (("no_alloc", c_bool), ("context", c_void_p))


class _TypeTraits(Structure):
    _fields_ = (
        ("name", c_char_p),
        ("block", _Size),
        ("interleaved", _Size),
        ("block_bytes", _Size),
        ("is_quantized", c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, c_void_p, c_void_p, _Size)),
    )


class LlamaCpp:
    """A GGUF file in llama.cpp, on the processor; its cache is float32. See :func:`opened`."""

    def __init__(self, library: Any, model: int, state: int, context: int) -> None:
        self._library, self._context = library, state
        self.longest: int = min(context, library.llama_model_n_ctx_train(model))
        self._vocabulary = library.llama_model_get_vocab(model)
        self.vocabulary_size: int = library.llama_vocab_n_tokens(self._vocabulary)

    def logits(self, tokens: Sequence[int], position: int = 0, *, last: bool = False) -> np.ndarray:
        """Of every token, float32 [T, V], the first at ``position``: behind those of calls before.

        Together they are at most the ``context`` it was opened for. ``last``: of the last one only,
        [1, V].
        """
        library, count = self._library, len(tokens)
        if position == 0:
            library.llama_memory_clear(library.llama_get_memory(self._context), True)
        batch = library.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            for index, token in enumerate(tokens):
                batch.token[index], batch.pos[index] = token, position + index
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
                batch.logits[index] = not last or index == count - 1
            if status := library.llama_decode(self._context, batch):
                raise RuntimeError(f"llama_decode of {count} tokens returned {status}")
        finally:
            library.llama_batch_free(batch)
        flat = library.llama_get_logits(self._context)
        rows = 1 if last else count
        return np.ctypeslib.as_array(flat, (rows, self.vocabulary_size)).copy()

    def tokens(self, text: str) -> list[int]:
        """Ids of plain text from its beginning on: nothing in it is read as a special token."""
        data = text.encode()
        ids = (c_int32 * (len(data) + 2))()  # a token before the text, and one behind it
        count = self._library.llama_tokenize(
            self._vocabulary, data, len(data), ids, len(ids), True, False
        )
        return list(ids[:count])

    def greedy(self, tokens: Sequence[int]) -> Iterator[int]:
        """The likeliest next token, and the likeliest behind that, one by one over its cache, as
        long as there is room; the end of text does not stop it."""
        position = 0
        while True:
            chosen = int(self.logits(tokens, position, last=True).argmax())
            yield chosen
            position, tokens = position + len(tokens), [chosen]

    def generate(self, prompt: str, new_tokens: int) -> Iterator[bytes]:
        """UTF-8 of the likeliest next tokens, one after the other, until the text ends."""
        tokens = self.tokens(prompt)
        longest = self.longest - new_tokens
        if not 0 < len(tokens) <= longest:
            raise UserError(
                f"the prompt has {len(tokens)} tokens and {new_tokens} shall be new, but the model"
                f" is for rows of {self.longest}; give a prompt of 1 to {max(longest, 1)} tokens,"
                " or ask for fewer new ones"
            )
        for chosen in itertools.islice(self.greedy(tokens), new_tokens):
            if self._library.llama_vocab_is_eog(self._vocabulary, chosen):
                return
            piece = ctypes.create_string_buffer(_LONGEST_PIECE)
            size = self._library.llama_token_to_piece(
                self._vocabulary, chosen, piece, len(piece), 0, False
            )
            yield piece.raw[: max(size, 0)]


@contextmanager
def opened(path: Path, context: int = 512) -> Iterator[LlamaCpp]:
    """Load ``path`` for rows of up to ``context`` tokens.

    Raises
    ------
    UserError : xllamacpp is not installed, or has another interface; or llama.cpp does not load
        the file, and says why.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    library, said = _library(), []
    log = _Log(lambda level, text, data: said.append(text.decode(errors="replace")))
    library.llama_log_set(log, None)
    model = state = None
    try:
        model = library.llama_model_load_from_file(os.fsencode(path), _on_processor(library))
        if model:
            state = library.llama_init_from_model(model, _context_parameters(library, context))
        if not state:
            words = "".join(said[-6:]).strip()
            raise UserError(f"{path}: llama.cpp does not load it: {words}")
        yield LlamaCpp(library, model, state, context)
    finally:
        if state:
            library.llama_free(state)
        if model:
            library.llama_model_free(model)
        library.llama_log_set(_SILENT, None)


def tensors_in(path: Path) -> dict[str, tuple[int, np.ndarray]]:
    """Number of the type, and bytes, of every tensor of a GGUF file, by name; see ``decoded``."""
    library, found = _library(), {}
    file = library.gguf_init_from_file(os.fsencode(path), _GgufParameters(no_alloc=True))
    if not file:
        raise UserError(f"{path}: llama.cpp finds no GGUF file")
    data, start = np.memmap(path, np.uint8, "r"), library.gguf_get_data_offset(file)
    for index in range(library.gguf_get_n_tensors(file)):
        first = start + library.gguf_get_tensor_offset(file, index)
        raw = data[first : first + library.gguf_get_tensor_size(file, index)]
        name = library.gguf_get_tensor_name(file, index).decode()
        found[name] = library.gguf_get_tensor_type(file, index), raw
    library.gguf_free(file)
    return found


def decoded(kind: int, raw: np.ndarray) -> np.ndarray:
    """Values, flat float32, of a tensor of the type of that number, by llama.cpp's own decoder."""
    traits = _library().ggml_get_type_traits(kind).contents
    if not traits.to_float:
        return raw.view(np.float32).ravel()
    values = np.empty(raw.nbytes // traits.block_bytes * traits.block, np.float32)
    traits.to_float(raw.ctypes.data, values.ctypes.data, values.size)
    return values


_SILENT = _Log(lambda level, text, data: None)


def _on_processor(library: Any) -> _Parameters:
    parameters = library.llama_model_default_params()
    _require({_GPU_LAYERS: -1}, parameters)
    parameters.words[_GPU_LAYERS] = 0
    return parameters


def _require(known: dict[int, int], parameters: _Parameters) -> None:
    words = parameters.words
    if other := {place: words[place] for place, want in known.items() if words[place] != want}:
        raise UserError(
            f"xllamacpp has other parameters than are known here (words {other}); install the"
            " version that constraints.txt names"
        )


def _context_parameters(library: Any, context: int) -> _Parameters:
    parameters = library.llama_context_default_params()
    _require(_DEFAULTS, parameters)
    words = parameters.words
    for place in _SIZES:
        words[place] = context
    for place in _THREADS:
        words[place] = available_cpus()
    for place in _CACHE_TYPES:
        words[place] = _F32
    words[_FLASH_ATTENTION] = 0  # it computes in half precision
    return parameters


def require_llama_cpp() -> None:
    """Raise a UserError where it is not installed, or is of an unknown version."""
    library = _library()
    _on_processor(library)
    _context_parameters(library, context=1)


@cache
def _library() -> Any:
    try:
        module = import_module("xllamacpp.xllamacpp")
    except ImportError as error:
        raise UserError(
            "GGUF files are checked in llama.cpp, which is not installed: pip install -c"
            " constraints.txt -e '.[gguf]', or write none (export.gguf: [])"
        ) from error
    library = ctypes.CDLL(str(module.__file__))
    functions: dict[str, tuple[Any, list[Any]]] = {
        "llama_model_default_params": (_Parameters, []),
        "llama_context_default_params": (_Parameters, []),
        "llama_model_load_from_file": (c_void_p, [c_char_p, _Parameters]),
        "llama_init_from_model": (c_void_p, [c_void_p, _Parameters]),
        "llama_model_get_vocab": (c_void_p, [c_void_p]),
        "llama_vocab_n_tokens": (c_int32, [c_void_p]),
        "llama_model_n_ctx_train": (c_int32, [c_void_p]),
        "llama_get_memory": (c_void_p, [c_void_p]),
        "llama_memory_clear": (None, [c_void_p, c_bool]),
        "llama_batch_init": (_Batch, [c_int32, c_int32, c_int32]),
        "llama_batch_free": (None, [_Batch]),
        "llama_decode": (c_int32, [c_void_p, _Batch]),
        "llama_get_logits": (POINTER(c_float), [c_void_p]),
        "llama_tokenize": (
            c_int32,
            [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool],
        ),
        "llama_token_to_piece": (
            c_int32,
            [c_void_p, c_int32, c_char_p, c_int32, c_int32, c_bool],
        ),
        "llama_vocab_is_eog": (c_bool, [c_void_p, c_int32]),
        "gguf_init_from_file": (c_void_p, [c_char_p, _GgufParameters]),
        "gguf_free": (None, [c_void_p]),
        "gguf_get_data_offset": (_Size, [c_void_p]),
        "gguf_get_n_tensors": (_Size, [c_void_p]),
        "gguf_get_tensor_name": (c_char_p, [c_void_p, _Size]),
        "gguf_get_tensor_type": (c_int32, [c_void_p, _Size]),
        "gguf_get_tensor_offset": (_Size, [c_void_p, _Size]),
        "gguf_get_tensor_size": (_Size, [c_void_p, _Size]),
        "ggml_get_type_traits": (POINTER(_TypeTraits), [c_int32]),
        "llama_free": (None, [c_void_p]),
        "llama_model_free": (None, [c_void_p]),
        "llama_log_set": (None, [_Log, c_void_p]),
    }
    for name, (result, arguments) in functions.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_backend_init()
    return library

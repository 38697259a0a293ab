"""Turn a GGUF file into what the engine loads: bf16 safetensors, config, tokenizer, chat template.

Executed by path with the engine's interpreter, which has torch, transformers, gguf and accelerate and may lack vllama:
so this file imports nothing of ours. The request is one JSON object on standard input, the answer NDJSON on standard
output, as in fetch.py. The weights are dequantised once, here; the engine then sees an ordinary model.
"""

import sys

# Executed by path, Python puts this folder first: its inspect.py would hide the standard library's.
sys.path[:] = [place for place in sys.path if place != __file__.rpartition("/")[0]]

import importlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, NoReturn  # noqa: E402

_OUT = os.fdopen(os.dup(1), "w", encoding="utf-8")


def emit(**fields: Any) -> None:
    """One line of NDJSON, on the real standard output."""
    _OUT.write(json.dumps(fields) + "\n")
    _OUT.flush()


def fail(reason: str, message: str, hint: str) -> NoReturn:
    """The last line of a conversion that failed."""
    emit(type="error", reason=reason, message=message, hint=hint, facts={})
    os._exit(1)


def phase(name: str, fraction: float, detail: str = "") -> None:
    """Where the conversion is; the fractions are those of a 135M model, measured."""
    emit(type="phase", phase=name, fraction=fraction, detail=detail)


def read_header(file: Path) -> tuple[str, int, bool]:
    """(architecture, parameters, whether there is a tokenizer) as the file's own header says."""
    gguf: Any = importlib.import_module("gguf")
    reader: Any = gguf.GGUFReader(os.fspath(file))
    field: Any = reader.fields.get("general.architecture")
    name = bytes(field.parts[field.data[0]]).decode() if field else ""
    parameters = sum(int(tensor.n_elements) for tensor in reader.tensors)
    return name, parameters, "tokenizer.ggml.model" in reader.fields


def convert(file: Path, folder: Path) -> None:
    """Do it; ends the process with an error line if the file cannot be converted."""
    doing = f"convert {file.name}"
    phase("reading", 0.02, file.name)
    try:
        torch: Any = importlib.import_module("torch")
        transformers: Any = importlib.import_module("transformers")
        architecture, parameters, has_tokenizer = read_header(file)
    except ImportError as error:
        fail(
            "UNSUPPORTED",
            f"cannot {doing}: the engine's environment lacks {error.name}",
            f"install gguf, accelerate and transformers beside the engine: {sys.executable} -m pip install gguf "
            "accelerate",
        )
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        fail("UNSUPPORTED", f"cannot {doing}: the file is damaged or cut off: {error}", "download it again")
    if not has_tokenizer:
        fail("UNSUPPORTED", f"cannot {doing}: it holds no tokenizer", "use a GGUF file of a whole language model")
    needed = parameters * 2
    free = shutil.disk_usage(folder).free
    if needed > free:
        fail(
            "STORAGE_FULL",
            f"cannot {doing}: needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB free in {folder}",
            "remove models (vllamactl rm), free space on that disk, or set server.state_dir to a bigger one",
        )
    transformers.logging.set_verbosity_error()
    phase("converting", 0.25, architecture)
    where, name = os.fspath(file.parent), file.name
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, gguf_file=name)
        phase("converting", 0.4, architecture)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            where,
            gguf_file=name,
            dtype=torch.bfloat16,
            quantization_config=transformers.GgufConfig(dequantize=True),
        )
    except (ValueError, KeyError, NotImplementedError, AttributeError, TypeError, RuntimeError) as error:
        fail(
            "UNSUPPORTED",
            f"cannot {doing}: transformers {transformers.__version__} cannot read the GGUF architecture "
            f"{architecture!r} ({str(error)[:200]})",
            "pull the model's original repository instead: vllamactl pull org/repo",
        )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    phase("writing", 0.8, f"{parameters / 1e6:.0f}M parameters")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    emit(type="done", architecture=architecture, parameters=parameters)


def main() -> int:
    """Read the request, do it, end with one line."""
    request = json.load(sys.stdin)
    os.dup2(2, 1)  # libraries that print must not disturb the protocol
    try:
        convert(Path(request["file"]), Path(request["folder"]))
    except OSError as error:
        full = error.errno in {28, 122}
        fail(
            "STORAGE_FULL" if full else "STORAGE_FAILED",
            f"cannot convert {request['file']}: {error.filename or request['folder']}: {error.strerror or error}",
            "free space on that disk" if full else "let the daemon's user read the file and write the store",
        )
    except MemoryError:
        fail("UNSUPPORTED", f"cannot convert {request['file']}: not enough memory", "convert it on a bigger machine")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What most plugins' `_load` do: complete weights, and images resized the same everywhere."""

from __future__ import annotations

from typing import Any

from flmm_core.errors import WeightsError

FILE_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "trust_remote_code")


def load_pretrained(
    source: str, model_class: Any, processor_class: Any, image_class: Any, **kwargs: Any
) -> tuple[Any, Any]:
    """A model and its processor by their classes' `from_pretrained`.

    Images are resized by Pillow: it gives the same pixels on every machine, and is what the
    weights were trained with. transformers would take torchvision where it is installed.

    Args:
        source: A folder or a hub id.
        model_class: The transformers class of the model.
        processor_class: That of the processor, `AutoProcessor` for example.
        image_class: That of the processor's part for images, `AutoImageProcessor` for example.
        kwargs: For the model; those that say where files come from go to all three.

    Returns:
        (model, processor).

    Raises:
        WeightsError: The files lack some of the model's weights. transformers would draw them at
            random and go on.
    """
    model, report = model_class.from_pretrained(source, output_loading_info=True, **kwargs)
    if missing := sorted(report["missing_keys"]):
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise WeightsError(
            f"The weights in '{source}' are not complete.",
            found=f"{len(missing)} of the model's tensors are missing: {shown}.",
            repair="Fetch the folder again, with all its *.safetensors files.",
        )
    files = {key: kwargs[key] for key in FILE_ARGUMENTS if key in kwargs}
    processor = processor_class.from_pretrained(source, **files)
    processor.image_processor = image_class.from_pretrained(source, backend="pil", **files)
    return model, processor

"""The record: the one file that a cell leaves behind, and the only contract between running and comparing.

A record is one JSON file, typed, versioned and complete, also when the cell failed. Beside it lie the
items that were scored (``NAME.items.parquet``), the full log (``NAME.log``) and, where that was asked for, the tuned
weights (``NAME/``). Standard library only, so that tables can be made on a machine without torch.
"""

from harness.record.codec import (
    decode,
    decode_tagged,
    encode,
    encode_tagged,
)
from harness.record.failures import Failure, Precautions, Shortage, SmallerBatches
from harness.record.files import (
    CARD,
    beginnings,
    hashes,
    machine,
    machine_tag,
    maker,
    model_folder,
    naming,
    pending,
    place,
    replacing,
    sha256,
    temporary,
    write_json,
)
from harness.record.measurements import (
    Disk,
    Inference,
    Kinds,
    LossPoint,
    Memory,
    Merge,
    Parameters,
    Phase,
    Probe,
    Tokens,
    Train,
    ValidationPoint,
)
from harness.record.names import (
    STUDY_NAME,
    cell_name,
    names_a_file,
    short,
)
from harness.record.reading import (
    RecordError,
    read,
    read_study,
    settle,
    studies,
    write,
)
from harness.record.schema import SCHEMA, Cell, Record, Saved, Source, Status, TrackerName, micro_batches
from harness.record.scores import ApiUsage, Contamination, Score, Scoring

__all__ = [
    "CARD",
    "SCHEMA",
    "STUDY_NAME",
    "ApiUsage",
    "Cell",
    "Contamination",
    "Disk",
    "Failure",
    "Inference",
    "Kinds",
    "LossPoint",
    "Memory",
    "Merge",
    "Parameters",
    "Phase",
    "Precautions",
    "Probe",
    "Record",
    "RecordError",
    "Saved",
    "Score",
    "Scoring",
    "Shortage",
    "SmallerBatches",
    "Source",
    "Status",
    "Tokens",
    "TrackerName",
    "Train",
    "ValidationPoint",
    "beginnings",
    "cell_name",
    "decode",
    "decode_tagged",
    "encode",
    "encode_tagged",
    "hashes",
    "machine",
    "machine_tag",
    "maker",
    "micro_batches",
    "model_folder",
    "names_a_file",
    "naming",
    "pending",
    "place",
    "read",
    "read_study",
    "replacing",
    "settle",
    "sha256",
    "short",
    "studies",
    "temporary",
    "write",
    "write_json",
]

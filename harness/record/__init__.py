"""The record: the one file that a cell leaves behind, and the only contract between running and comparing.

A record is one JSON file, typed, versioned and complete, also when the cell failed. Beside it lie the
items that were scored (``NAME.items.parquet``), the full log (``NAME.log``) and, where that was asked for, the tuned
weights (``NAME/``). Standard library and orjson only, so that tables can be made on a machine without torch.
"""

from harness.record.calibration import (
    Calibration,
    TimedKernel,
    calibration_path,
    calibrations,
    device_of,
    write_calibration,
)
from harness.record.clusters import cluster_numbers, clustered_error, subject_weights
from harness.record.codec import decode, decode_tagged, encode, encode_tagged
from harness.record.commands import COMMANDS, add_merged_commands, note_command, noted_commands, repeated_sweeps
from harness.record.failures import Failure, Precautions, Shortage, SmallerBatches, StopRule
from harness.record.files import (
    CARD,
    beginnings,
    content_of,
    hashes,
    machine,
    machine_tag,
    maker,
    model_folder,
    naming,
    pending,
    place,
    replacing,
    scored_model,
    sha256,
    sync,
    temporary,
    without_link,
    write_json,
)
from harness.record.measurements import (
    BestStep,
    Disk,
    Gpu,
    HeldOut,
    Inference,
    Kinds,
    LossPoint,
    Memory,
    Merge,
    PairRewards,
    Parameters,
    Phase,
    Probe,
    Tokens,
    Train,
    ValidationPoint,
)
from harness.record.names import STUDY_NAME, cell_name, names_a_file, short
from harness.record.overlaps import overlapping
from harness.record.own_data import Lengths, OwnData
from harness.record.planned_study import PlannedStudy, PlanProgress
from harness.record.ranges import check_items, check_length, check_settings
from harness.record.reading import (
    RecordError,
    read,
    read_study,
    require_one_folder_each,
    sealed,
    settle,
    studies,
    write,
)
from harness.record.schema import (
    COMPLETE,
    SCHEMA,
    Cell,
    Record,
    Repeat,
    Saved,
    Source,
    Status,
    TrackerName,
    awaits_scoring,
    losses_by_seed,
    micro_batches,
    repeat_of,
)
from harness.record.scores import ApiUsage, ClassCounts, Contamination, Judging, Score, Scoring, VllmUsage, item_hashes
from harness.record.study_plan import (
    PLAN,
    ComparedGroup,
    JudgingRules,
    PlannedMethod,
    StudyPlan,
    add_plans,
    group_of,
    planned_seeds,
    read_plans,
)
from harness.record.train_memory import Instrument, memory_instrument, memory_remainder, train_memory

"""The words of the API: group, kinds, phases, reasons, labels and annotations, each spelled in one place."""

GROUP = "grit.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
CHECKPOINT = "Checkpoint"
RESTORE = "Restore"
CHECKPOINTS = "checkpoints"
RESTORES = "restores"

# The phases are those of GRIT (kaito-project/grit, pkg/apis/v1alpha1).
CREATED = "Created"
PENDING = "Pending"
CHECKPOINTING = "Checkpointing"
CHECKPOINTED = "Checkpointed"
SUBMITTING = "Submitting"
SUBMITTED = "Submitted"
RESTORING = "Restoring"
RESTORED = "Restored"
FAILED = "Failed"

COMPLETE = frozenset({CHECKPOINTED, SUBMITTING, SUBMITTED})
"""The phases of a Checkpoint whose data is whole."""
CHECKPOINT_PHASES = (CREATED, PENDING, CHECKPOINTING, CHECKPOINTED, SUBMITTING, SUBMITTED, FAILED)
RESTORE_PHASES = (CREATED, PENDING, RESTORING, RESTORED, FAILED)

# What a Restore says about a pod whose data isn't there.
WAIT = "Wait"
COLD_START = "ColdStart"

# Of pods.
OPT_IN = "grit.dev/restorable"
"""Label, `true`: the webhook looks at such pods, and the API server creates none without it."""
RESTORE_LABEL = "grit.dev/restore"
"""Label, by the webhook: the Restore that a pod was chosen for."""
ABLE = "grit.dev/restore"
"""Label of nodes, as `grit-runtime doctor --node` writes it."""
NODE_HOSTNAME = "kubernetes.io/hostname"

# Of a Restore: when the webhook chose a pod, whose name is not known yet at that moment (as GRIT has it).
POD_SELECTED = "grit.dev/pod-selected"

FINALIZER = "grit.dev/data"
"""The node's: the data is removed first."""
HOLD = "grit.dev/restores"
"""The manager's: the data stays while a Restore from it is in progress."""

BACK_OFF = "CrashLoopBackOff"
"""What kubelet says of a container between two attempts to start it."""

# Conditions.
READY = "Ready"
STORED = "Stored"
DATA = "DataAvailable"
IN_USE = "InUse"
ORIGIN = "FromCheckpoint"

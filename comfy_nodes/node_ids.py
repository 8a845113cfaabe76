"""The ids of all our nodes. Saved workflows hold them: none ever changes."""

from __future__ import annotations

# Values between two running workflows: zbus's own nodes, and ComfyUI-Jumper's.
SEND, RECEIVE = "ZBusSend", "ZBusReceive"
SEND_STRING, SEND_IMAGES = "Send String", "Send Images"
RECEIVE_STRING, RECEIVE_IMAGES = "Receive String", "Receive Images"
JUMPER = (SEND_STRING, SEND_IMAGES, RECEIVE_STRING, RECEIVE_IMAGES)

# Part of a workflow on other ComfyUIs.
RUN, VARY, COMPUTE_HERE = "ZBusRun", "ZBusVary", "ZBusHere"

# What zbus itself puts into prompts.
START, COLLECT = "ZBusStart", "ZBusCollect"
VALUE, RESULT = "ZBusValue", "ZBusResult"
THERE, VARY_AT = "ZBusThere", "ZBusVaryAt"
RUN_TAPPED, WANTED, TAP = "ZBusRunTapped", "ZBusWanted", "ZBusTap"
INTERNAL = (START, COLLECT, VALUE, RESULT, THERE, VARY_AT, RUN_TAPPED, WANTED, TAP)

RUNS = (RUN, RUN_TAPPED)  # the second is the first one whose part is looked into

# ComfyUI_NetDist's: a workflow on a remote.
QUEUE_SIMPLE, QUEUE_WORKER = "RemoteQueueSimple", "RemoteQueueWorker"
QUEUE_OLDER = "QueueRemote"
FETCH = "FetchRemote"
CHAIN_START, CHAIN_END = "RemoteChainStart", "RemoteChainEnd"
QUEUES = (QUEUE_SIMPLE, QUEUE_WORKER, QUEUE_OLDER)
CHAIN = (CHAIN_START, CHAIN_END)

# ComfyUI_NetDist's: files and URLs.
LOAD_IMAGE_URL, SAVE_IMAGE_URL = "LoadImageUrl", "SaveImageUrl"
COMBINE_IMAGES = "CombineImageBatch"
LOAD_LATENT_NUMPY, SAVE_LATENT_NUMPY = "LoadLatentNumpy", "SaveLatentNumpy"
LOAD_LATENT_URL = "LoadLatentUrl"
LOAD_WORKFLOW, SAVE_WORKFLOW = "LoadDiskWorkflowJSON", "SaveDiskWorkflowJSON"
CURRENT_WORKFLOW = "LoadCurrentWorkflowJSON"

# In the order in which ComfyUI is told of them.
ALL = (
    *(SEND, RECEIVE, RUN, VARY, COMPUTE_HERE),
    *JUMPER,
    *(QUEUE_SIMPLE, FETCH, CHAIN_START, QUEUE_WORKER, CHAIN_END, QUEUE_OLDER),
    *(LOAD_IMAGE_URL, SAVE_IMAGE_URL, COMBINE_IMAGES),
    *(LOAD_LATENT_NUMPY, LOAD_LATENT_URL, SAVE_LATENT_NUMPY),
    *(SAVE_WORKFLOW, LOAD_WORKFLOW, CURRENT_WORKFLOW),
    *INTERNAL,
)

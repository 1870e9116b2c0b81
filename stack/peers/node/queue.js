export const QUEUE = "peer.vendors";
export const ARGUMENTS = { "x-queue-type": "quorum" };

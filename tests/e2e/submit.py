"""Hands a manifest to a coordinator and prints its answer as JSON.

This client has nothing of Ringmaster: not its command, not its Python (there is none), not even its .proto files.
What can be called, and with what, it asks the coordinator by gRPC server reflection.

    python tests/e2e/submit.py 127.0.0.1:7070 JOB.yaml
"""

import json
import os
import sys
import uuid

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status

TIMEOUT_S = 60


def main(address, path):
    # The address is one of this machine or network, whatever proxy the environment names.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        answer = submit(channel, pool, path)
    print(json.dumps(answer))


def submit(channel, pool, path):
    method = pool.FindServiceByName("ringmaster.v1.Jobs").methods_by_name["Submit"]
    request_type = message_factory.GetMessageClass(method.input_type)
    reply_type = message_factory.GetMessageClass(method.output_type)
    call = channel.unary_unary(
        "/ringmaster.v1.Jobs/Submit",
        request_serializer=request_type.SerializeToString,
        response_deserializer=reply_type.FromString,
    )
    with open(path, encoding="utf-8") as file:
        manifest = file.read()
    request = request_type(
        manifest_yaml=manifest,
        file_name=path,
        base_dir=os.path.dirname(os.path.abspath(path)),
        request_id=uuid.uuid4().hex,
    )
    try:
        return {"job_id": call(request, timeout=TIMEOUT_S).job_id}
    except grpc.RpcError as error:
        return {
            "code": error.code().name,
            "message": error.details(),
            "details": details(error, pool),
        }


def details(error, pool):
    """Returns what a refusal says beside its text, read by the descriptions the coordinator gave."""
    status = rpc_status.from_call(error)
    found = []
    for detail in status.details if status else []:
        described = pool.FindMessageTypeByName(detail.TypeName())
        message = message_factory.GetMessageClass(described).FromString(detail.value)
        found.append(json_format.MessageToDict(message, preserving_proto_field_name=True))
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The Operations service (floor 4)."""

# The generated base classes are untyped and synchronous.
# pyright: reportIncompatibleMethodOverride=false

from collections.abc import AsyncGenerator

from vllama.control.v1 import operations_pb2 as pb
from vllama.control.v1 import operations_pb2_grpc as pb_grpc
from vllamad.control import convert
from vllamad.control.interceptor import Context, streaming, unary
from vllamad.operations.registry import Operations


class OperationsService(pb_grpc.OperationsServicer):
    """Watchable progress."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    @unary
    async def GetOperation(self, request: pb.GetOperationRequest, context: Context) -> pb.GetOperationResponse:
        return pb.GetOperationResponse(operation=convert.operation(self._operations.get(request.name)))

    @unary
    async def ListOperations(self, request: pb.ListOperationsRequest, context: Context) -> pb.ListOperationsResponse:
        return pb.ListOperationsResponse(operations=[convert.operation(one) for one in self._operations.list()])

    @streaming
    async def WatchOperation(
        self, request: pb.WatchOperationRequest, context: Context
    ) -> AsyncGenerator[pb.WatchOperationResponse, None]:
        async for snapshot in self._operations.watch(request.name):
            yield pb.WatchOperationResponse(operation=convert.operation(snapshot))

    @unary
    async def CancelOperation(self, request: pb.CancelOperationRequest, context: Context) -> pb.CancelOperationResponse:
        operation = self._operations.cancel(request.name, request.only_if_unwatched)
        return pb.CancelOperationResponse(operation=convert.operation(operation))

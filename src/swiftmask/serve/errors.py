"""What is wrong with a request, in the form that OpenAI's clients read."""

from http import HTTPStatus


class RequestError(Exception):
    """Ends a request with a status and one line.

    Attributes:
        message: the line. It names no path of this machine and holds no traceback.
        param: the field that is wrong.
        code: a word for programs, such as "queue_full".
        retry_after: seconds after which another attempt may succeed.
        close: whether the connection is closed, because the rest of its body is not read.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.retry_after, self.close = retry_after, close

    def content(self) -> dict[str, object]:
        """`{"error": {"message", "type", "param", "code"}}`"""
        return {
            "error": {
                "message": self.message,
                "type": error_type(self.status),
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        """Retry-After and Connection, where they apply."""
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return headers | ({"connection": "close"} if self.close else {})


def error_type(status: int) -> str:
    """OpenAI's word for a status."""
    types = {
        HTTPStatus.UNAUTHORIZED: "authentication_error",
        HTTPStatus.NOT_FOUND: "not_found_error",
        HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    }
    return types.get(status, "server_error" if status >= 500 else "invalid_request_error")  # type: ignore[call-overload]

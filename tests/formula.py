"""What experiments of the tests share; nothing is imported here, as workers load it when they begin."""


class Formula:
    """An experiment that says no more of itself than it must."""

    @property
    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def label(self, axis: str) -> str:
        return axis

    def magnitude(self, axis: str, seed: int) -> float:
        return 0.0

    def contract(self, seed: int) -> dict[str, str]:
        return {}

"""The former place of `mmabits.emulator.engine.native` and `.record`, kept for programs that import from here."""

from mmabits.emulator.engine.native import NativeProduct, native_product, variants
from mmabits.emulator.engine.record import CALL, Call, Variant

__all__ = ["CALL", "Call", "NativeProduct", "Variant", "native_product", "variants"]

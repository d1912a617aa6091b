# Guide: "Key Management System": key lifecycle, export for backup, import for recovery.
# prints: Agent public key: 64 digits
# prints: Verify key: 64 digits
# prints: Keys rotated. Old keys archived for verification.
# prints: no private keys in the result: True
# prints: without a passphrase: KeyringError
# prints: the same agent, with new keys: True True
from praval.core.secure_spore import SporeKeyManager
from praval.errors import KeyringError

# Agent key initialization
key_manager = SporeKeyManager("production_agent")

# Key information
public_keys = key_manager.get_public_keys()
print(f"Agent public key: {len(public_keys['public_key'].hex())} digits")
print(f"Verify key: {len(public_keys['verify_key'].hex())} digits")

# Secure key rotation
rotation_result = key_manager.rotate_keys()
print("Keys rotated. Old keys archived for verification.")
print("no private keys in the result:", not any("private" in name for name in rotation_result))

# Key export for backup
try:
    key_manager.export_keys()
except KeyringError as error:
    print("without a passphrase:", type(error).__name__)
exported_keys = key_manager.export_keys(passphrase="correct horse battery staple")

# Key import for recovery
recovered_manager = SporeKeyManager.import_keys(
    "production_agent", exported_keys, passphrase="correct horse battery staple"
)
recovered = recovered_manager.get_public_keys()
print(
    "the same agent, with new keys:",
    recovered["identity_key"] == public_keys["identity_key"],
    recovered["public_key"] != public_keys["public_key"],
)

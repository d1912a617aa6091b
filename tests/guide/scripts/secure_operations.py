# Guide: "Cryptographic Operations": encrypt and sign for one recipient, decrypt and verify.
# prints: {'confidential': 'data'}
# prints: BAD_SIGNATURE
from praval.core.secure_spore import SporeKeyManager
from praval.errors import EnvelopeError

key_manager = SporeKeyManager("sender_agent")
target = SporeKeyManager("target_agent")


def get_agent_public_key(name):
    return {"sender_agent": key_manager, "target_agent": target}[name].get_public_keys()[
        "public_key"
    ]


def get_agent_verify_key(name):
    return {"sender_agent": key_manager}[name].get_public_keys()["verify_key"]


# Encrypt and sign knowledge for specific recipient
recipient_public_key = get_agent_public_key("target_agent")
encrypted_data, nonce, signature = key_manager.encrypt_and_sign(
    knowledge={"confidential": "data"}, recipient_public_key=recipient_public_key
)

# Decrypt and verify received message
sender_public_key = get_agent_public_key("sender_agent")
sender_verify_key = get_agent_verify_key("sender_agent")

decrypted_knowledge = target.decrypt_and_verify(
    encrypted_data=encrypted_data,
    nonce=nonce,
    signature=signature,
    sender_public_key=sender_public_key,
    sender_verify_key=sender_verify_key,
)
print(decrypted_knowledge)

try:
    target.decrypt_and_verify(
        encrypted_data + b"!", nonce, signature, sender_public_key, sender_verify_key
    )
except EnvelopeError as error:
    print(error.code.name)

# Guide: "Cryptographic Architecture" and the subscriber of "AMQP": seal, publish, open. The guide's
# broker is the local transport here; the calls are the same.
# prints: on the wire: 0 times the secret, 1 time the sender's name
# prints: {'sensitive_data': 'classified_information'}
import asyncio

from praval import SporeType
from praval.core.secure_spore import SecureSpore, SecureSporeFactory, SporeKeyManager
from praval.core.transport import TransportProtocol, transport_connection

# Initialize secure messaging
key_manager = SporeKeyManager("secure_agent")
secure_factory = SecureSporeFactory(key_manager)

target = SporeKeyManager("target_agent")
received = asyncio.Event()


async def get_agent_public_keys(name):
    return {"secure_agent": key_manager, "target_agent": target}[name].get_public_keys()


async def secure_message_handler(encrypted_message):
    print(
        f"on the wire: {encrypted_message.count(b'classified')} times the secret, "
        f"{encrypted_message.count(b'secure_agent')} time the sender's name"
    )
    secure_spore = SecureSpore.from_bytes(encrypted_message)
    sender_keys = await get_agent_public_keys(secure_spore.from_agent)
    print(SecureSporeFactory(target).open_secure_spore(secure_spore, sender_keys))
    received.set()


# Create end-to-end encrypted message
async def secure_communication():
    # Get recipient's public keys
    recipient_keys = await get_agent_public_keys("target_agent")

    # Create encrypted, authenticated message
    secure_spore = secure_factory.create_secure_spore(
        to_agent="target_agent",
        knowledge={"sensitive_data": "classified_information"},
        spore_type=SporeType.REQUEST,
        priority=10,
        expires_in_seconds=3600,
        recipient_public_keys=recipient_keys,
    )

    # Transmit over secure transport
    async with transport_connection(TransportProtocol.LOCAL, {}) as transport:
        await transport.subscribe("secure.*", secure_message_handler)
        await transport.publish("secure.channel", secure_spore.to_bytes())
        await received.wait()


asyncio.run(secure_communication())

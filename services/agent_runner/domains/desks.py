"""Owns airline and retail on the code of the `inspect-evals` port: which tools there are, in upstream's order, and what the port lacks.

Supplied here: `calculate` and `transfer_to_human_agents`, which the port has only as Inspect tools, and retail's `get_item_details`, which
it does not have at all. Tools that return a model give its dump without blanks in the port; upstream's text has them.
"""

import json
from typing import Any

from services.agent_runner.domains import arithmetic
from services.agent_runner.domains.port import ToolkitSource, reserialized


def calculate(self: Any, expression: str) -> str:
    """Calculate the result of a mathematical expression."""
    return arithmetic.calculate(expression)


def transfer_to_human_agents(self: Any, summary: str) -> str:
    """Transfer the user to a human agent."""
    return "Transfer successful"


def get_item_details(self: Any, item_id: str) -> str:
    """Get the inventory details of an item.

    Args:
        item_id: The item id, such as '6086499569'. Be careful the item id is different from the product id.
    """
    for product in self.db.products.values():
        if item_id in product.variants:
            return product.variants[item_id].model_dump_json()
    raise ValueError("Item not found")


AIRLINE = ToolkitSource(
    hosted="airline.AirlineAgentTools:AirlineAgentTools",
    name="AirlineTools",
    wrappers="airline.tools",
    tools=(
        "book_reservation",
        "calculate",
        "cancel_reservation",
        "get_reservation_details",
        "get_user_details",
        "list_all_airports",
        "search_direct_flight",
        "search_onestop_flight",
        "send_certificate",
        "transfer_to_human_agents",
        "update_reservation_baggages",
        "update_reservation_flights",
        "update_reservation_passengers",
        "get_flight_status",
    ),
    writes=frozenset(
        {
            "book_reservation",
            "cancel_reservation",
            "send_certificate",
            "update_reservation_baggages",
            "update_reservation_flights",
            "update_reservation_passengers",
        }
    ),
    supplied={"calculate": calculate, "transfer_to_human_agents": transfer_to_human_agents},
    renderers=dict.fromkeys(
        (
            "book_reservation",
            "cancel_reservation",
            "get_reservation_details",
            "get_user_details",
            "update_reservation_baggages",
            "update_reservation_flights",
            "update_reservation_passengers",
        ),
        reserialized,
    ),
)

RETAIL = ToolkitSource(
    hosted="retail.RetailAgentTools:RetailAgentTools",
    name="RetailTools",
    wrappers="retail.tools",
    tools=(
        "calculate",
        "cancel_pending_order",
        "exchange_delivered_order_items",
        "find_user_id_by_name_zip",
        "find_user_id_by_email",
        "get_order_details",
        "get_product_details",
        "get_item_details",
        "get_user_details",
        "list_all_product_types",
        "modify_pending_order_address",
        "modify_pending_order_items",
        "modify_pending_order_payment",
        "modify_user_address",
        "return_delivered_order_items",
        "transfer_to_human_agents",
    ),
    writes=frozenset(
        {
            "cancel_pending_order",
            "exchange_delivered_order_items",
            "modify_pending_order_address",
            "modify_pending_order_items",
            "modify_pending_order_payment",
            "modify_user_address",
            "return_delivered_order_items",
        }
    ),
    supplied={"calculate": calculate, "transfer_to_human_agents": transfer_to_human_agents, "get_item_details": get_item_details},
    renderers={
        **dict.fromkeys(
            (
                "cancel_pending_order",
                "exchange_delivered_order_items",
                "get_order_details",
                "get_product_details",
                "get_item_details",
                "get_user_details",
                "modify_pending_order_address",
                "modify_pending_order_items",
                "modify_pending_order_payment",
                "modify_user_address",
                "return_delivered_order_items",
            ),
            reserialized,
        ),
        # The method gives the dictionary, its Inspect wrapper and upstream give sorted JSON text.
        "list_all_product_types": lambda value: json.dumps(value, sort_keys=True),
    },
)

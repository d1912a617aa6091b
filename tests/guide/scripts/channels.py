"""Guide, "Channels and Message Routing": agents of one channel each, broadcasts from a script."""
# sorted
# prints: market AAPL
# prints: news Reef

from praval import agent, broadcast, start_agents


@agent("news_analyzer", channel="news_feed")
def analyze_news(spore):
    print("news", spore.knowledge["headline"])


@agent("market_analyzer", channel="market_data")
def analyze_market(spore):
    print("market", spore.knowledge["symbol"])


start_agents(analyze_news, analyze_market)
broadcast({"type": "breaking_news", "headline": "Reef"}, channel="news_feed")
broadcast({"type": "price_update", "symbol": "AAPL", "price": 150}, channel="market_data")

"""The policy server: a small torch engine with SGLang's HTTP surface, a stand-in for SGLang on laptops and in tests."""

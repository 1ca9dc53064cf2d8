"""Translation and other transductions: WMT16 English-German, with fairseq's own tools."""
